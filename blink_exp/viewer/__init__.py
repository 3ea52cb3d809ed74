"""The viewer: one page about one question. What the model saw, decided and attended to layer by layer, and what several methods answer.

python -m blink_exp view sample=<sample id>                 a sample of the benchmark
python -m blink_exp view image=photo.jpg question="..."     any picture and question
"""
