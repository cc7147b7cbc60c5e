"""The cost of a network: parameters, MACs, time and memory; and stage widths that meet a budget."""
