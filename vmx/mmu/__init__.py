"""Translation: physical memory, guest page walks, EPT, the TLB, and the processor's accesses through them."""
