"""Path patching: find, measure, draw and compare circuits."""
