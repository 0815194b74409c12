"""What `devmesh doctor` looks at. One function a check, a file for each thing that is looked at.

A check says what it found and what to do about it, and changes nothing. Must not know how it is printed.
"""
