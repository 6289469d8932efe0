"""What says whether an answer is right, for exams and for rewards: mathematics, a judge, a program's tests."""
