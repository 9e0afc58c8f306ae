"""VMX itself: VMCS fields, controls, capability MSRs, VM-entry checks, VM entry, VM exit, exit conditions."""
