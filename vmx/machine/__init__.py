"""A platform wired together: RAM map, firmware tables, devices, virtual clock, virtual CPUs."""
