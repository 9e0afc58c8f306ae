"""The Python hypervisor, root-mode software that ships with the package, and the machine that it drives."""
