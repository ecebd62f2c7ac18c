"""A report as one HTML file that recomputes its latencies in the browser."""
