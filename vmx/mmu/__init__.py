"""Translation: physical memory, guest page walks, EPT, the TLB, and the accesses that the processor makes through them."""
