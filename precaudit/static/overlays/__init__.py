"""What each library gives back when the code under check calls it: one module or package per library, tables first."""
