"""The Python hypervisor, root-mode software that ships with the package: allocator, dispatcher, handlers, and the machine that they drive."""
