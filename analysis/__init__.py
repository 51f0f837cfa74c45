"""What analyze_representations.py is made of: hidden states, their isotropy and hyperbolicity, intervals, the report."""
