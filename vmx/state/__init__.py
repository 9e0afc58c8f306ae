"""The ground floor: record layouts that all compiled code shares, raw memory access, 64-bit arithmetic, compilation units."""
