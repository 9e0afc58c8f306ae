"""Instruction-set features beyond x86-64-v1: their numbers, and the processor models made of them.

A row of the instruction table names the feature that it needs. The number of a feature is its bit in the mask
`features` of the processor record; the decoder takes a row without its feature for no instruction (or for the one
that older processors see there: TZCNT is BSF). Number 0 means that every model has the instruction. CPUID bits
are in vmx.cpu.cpuid, under the same names.
"""

FEATURES = (
    "sse3", "ssse3", "sse4_1", "sse4_2", "pclmulqdq", "aes", "lzcnt", "bmi1", "bmi2", "adx", "rdrand", "rdseed",
    "rdpid", "clflushopt", "clwb", "movdiri", "serialize",
)  # fmt: skip
FEATURE_NUMBER = {name: number for number, name in enumerate(FEATURES, 1)}
MODELS = {"v1": frozenset(), "v2": frozenset(FEATURES)}

# executed by the host's own instruction, with the host's name for it in /proc/cpuinfo; all others are compiled code
NATIVE = {
    "sse3": "pni",
    "ssse3": "ssse3",
    "sse4_1": "sse4_1",
    "sse4_2": "sse4_2",
    "pclmulqdq": "pclmulqdq",
    "aes": "aes",
}


def chosen_features(model: str, overrides: dict[str, bool] | None = None) -> frozenset[str]:
    """The features of a model, with some switched on or off by name."""
    overrides = overrides or {}
    on = {name for name, wanted in overrides.items() if wanted}
    off = {name for name, wanted in overrides.items() if not wanted}
    return (MODELS[model] | on) - off


def feature_mask(names) -> int:
    """The mask for `cpu.features`."""
    return sum(1 << FEATURE_NUMBER[name] for name in set(names))


ALL_FEATURES = feature_mask(FEATURES)
