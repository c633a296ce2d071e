"""What turns encoded questions into answers: one file per engine, behind one interface."""
