"""Variations of a study: valid ones, which must pass, and wrong ones, which a check must find.

Each module has ``VALID`` (name -> function) and ``WRONG`` (name -> function and the accepted answers: flag codes, or
``refused``). A function takes a study and a random generator and returns the changed study.
"""
