"""Attacks on a trained classifier: noise on its embeddings (`pgd.py`) and changed letters (`characters.py`).

`robustness.py` applies both to a study's models. The perturbations that training uses live in `mt_dnn/perturbation`.
"""
