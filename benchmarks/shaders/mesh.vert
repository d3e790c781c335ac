#version 330 core
// pyrender's names for attributes and matrices; what the shading needs and no more.
layout(location = 0) in vec3 position;
layout(location = NORMAL_LOC) in vec3 normal;
#ifdef TEXCOORD_0_LOC
layout(location = TEXCOORD_0_LOC) in vec2 texcoord_0;
#endif
layout(location = COLOR_0_LOC) in vec4 color_0;
layout(location = INST_M_LOC) in mat4 inst_m;
uniform mat4 M; uniform mat4 V; uniform mat4 P;
out vec3 world; out vec3 n; out vec3 tint; out vec2 uv;

void main() {
    vec4 at = M * inst_m * vec4(position, 1.0);
    gl_Position = P * V * at;
    world = at.xyz;
    n = normal;  // poses of meshes are the identity here
    tint = color_0.rgb;
#ifdef TEXCOORD_0_LOC
    uv = texcoord_0;
#else
    uv = vec2(0.0);
#endif
}
