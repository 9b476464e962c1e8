"""Pages that people look at: of a training run, of a prediction table, and of what differs between two of them.

A page has two steps. The facts of a run or table are collected into plain values, which are also written as JSON. Then the
page is made from these values alone.
"""
