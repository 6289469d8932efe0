"""Exams: questions with candidates or answers to generate, scored exactly and with their standard errors."""
