"""Rank tables as files: made of this machine's devices, merged from several machines, checked, written.

addresses.py and devices.py say what a machine has; layouts.py reads any table, however wrong; checking.py names its
flaws. What reads a finished table to start workers is `cluster/rank_table.py`.
"""
