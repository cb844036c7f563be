"""Forces given by formulas or maps, evaluated in torch: what the C++ kernel does not know."""
