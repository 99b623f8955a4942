"""What the device, the cloud and the exporter must agree on: errors, wire, schedule, noise, pairs, bundle manifest."""
