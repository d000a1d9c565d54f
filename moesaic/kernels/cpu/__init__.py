"""The C++ backend (csrc/): its libraries, the calls into them, and the operations they compute."""
