"""What is done to the repository: checked, tested, documented, packed (``python -m depass_sae.dev TASK``). No part of
the wheel.
"""
