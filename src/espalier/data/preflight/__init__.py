"""Looking at a run's data before the first step: what it is, how long, what was left out, what smells wrong.

Pure: records and the trees made of them go in, numbers and findings come out; nothing is changed, and nothing is
tokenised again. What was left out is not counted here but taken from the readers' own `Account`.
"""
