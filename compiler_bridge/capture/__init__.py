"""From a Dynamo graph to AOTAutograd's forward and backward graphs of elementary ATen operations."""
