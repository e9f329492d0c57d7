print("trm-bench")
