"""What `moesaic bench` measures, and how figures are reported; benchmarks/ outside the package reports with it too."""
