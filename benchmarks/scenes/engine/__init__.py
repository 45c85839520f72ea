"""What all tables are made by: parts that resume, where they lie, the machine that they name."""
