"""What several tests share: cases, comparisons, tolerances, made-up data, and programs that run beside a test."""
