"""The LLM under a method: each part that questions or points share runs once, exactly.

In `system | visual | expanded | text` attention is causal. So the visual prefix depends on the image alone (``prefixes``), an expanded
segment on the image, its layer, region and TokenSR module (``segments``), and only the text depends on the decisions. A branch
(``branches``) is a text under the decisions taken so far; points that decided alike are one branch. ``branch_decoder`` runs all branches
as one batch through unmodified layer modules. Entry points: ``answers``, ``forced`` for the logits of given answers, and ``attach`` for a
model's own forward and generate().
"""
