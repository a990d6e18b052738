"""Measurements of speed, memory and accuracy. ``python -m bench --list`` names them."""
