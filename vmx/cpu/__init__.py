"""The processor: decode, semantics by group, segmentation, exception and interrupt delivery, the interpreter."""
