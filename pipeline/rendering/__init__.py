"""Pictures of meshes: cameras, lights, and one OpenGL pass a view without a display."""
