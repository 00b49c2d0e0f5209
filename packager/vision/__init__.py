"""The part of a model that sees: its weights judged, its graphs written, what they compute proved.

A seeing bundle is the text model's bundle whose decoder reads embeddings, with two more graphs: one that makes features
of pictures, one that puts them where the words' embeddings are. Both are written from the checkpoint's weights by
their published names, node by node; no code of the checkpoint is run.
"""
