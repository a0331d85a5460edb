"""Four teams whose topics were not designed for karmalake, and the four source files that bring them in."""
