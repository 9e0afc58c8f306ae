"""The ground floor: record layouts shared by compiled code, raw memory, 64-bit arithmetic, compilation units."""
