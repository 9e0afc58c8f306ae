"""Other implementations that vmx is compared with: the host's processor, iced-x86, Unicorn."""
