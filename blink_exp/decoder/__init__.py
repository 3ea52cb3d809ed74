"""The LLM under a method: segments over caches, scans, expansions, and what questions or points have in common run once, exactly.

In `system | visual | expanded | text` attention is causal, so the visual prefix depends on the image alone (``prefixes``), an expanded
segment on the image, its layer, its region and its TokenSR module alone (``expansions``), and only the text on what was decided. A text
under the decisions taken so far is a branch (``branches``): points that decided alike are one branch, and all branches run as one batch
through unmodified layer modules. ``answers`` is the way in; ``attach`` puts a method on a model's own forward and generate().
"""
