"""The instruction set as data: one row per opcode form, and the decoder tables built from the rows."""
