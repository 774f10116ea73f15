"""The words both witnesses share (`vocabulary`) and the shapes that enter or leave the process (`wire`)."""
