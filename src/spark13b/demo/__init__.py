"""The material of `spark13b demo`: a small bilingual instruction corpus of our own, with questions held out of it."""
