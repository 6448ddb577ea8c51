// Empty: csrc/cpu/host uses nothing of it.
