#version 330 core
// The shading of pipeline.rendering.rasterizer over pyrender's uniforms, so that pictures can be compared pixel by pixel.
// directional_lights[0] is the fill and [1] the key; ambient_light holds ground and sky.
struct Light { vec3 color; float intensity; vec3 direction; };
struct Material {
    vec3 emissive_factor; vec4 base_color_factor; float metallic_factor; float roughness_factor;
#ifdef HAS_BASE_COLOR_TEX
    sampler2D base_color_texture;
#endif
};
uniform Material material;
uniform Light directional_lights[MAX_DIRECTIONAL_LIGHTS];
uniform vec3 cam_pos; uniform vec3 ambient_light;
in vec3 world; in vec3 n; in vec3 tint; in vec2 uv;
out vec4 frag_color;

vec3 decode(vec3 c) { return mix(c / 12.92, pow((c + 0.055) / 1.055, vec3(2.4)), step(0.04045, c)); }
vec3 encode(vec3 c) { return mix(c * 12.92, 1.055 * pow(c, vec3(1.0 / 2.4)) - 0.055, step(0.0031308, c)); }

vec3 lit(Light light, vec3 normal, vec3 view, vec3 diffuse, vec3 f0) {
    vec3 to_light = -light.direction, halfway = normalize(to_light + view);
    float nl = max(dot(normal, to_light), 0.0), nv = max(dot(normal, view), 0.05);
    float nh = max(dot(normal, halfway), 0.0), vh = max(dot(view, halfway), 0.0);
    float rough = material.roughness_factor;
    float a2 = pow(max(rough, 0.2), 4.0), k = (rough + 1.0) * (rough + 1.0) / 8.0;
    vec3 fresnel = f0 + (1.0 - f0) * pow(max(1.0 - vh, 0.0), 5.0);
    float spread = nh * nh * (a2 - 1.0) + 1.0;
    float glint = a2 / (spread * spread) / (4.0 * mix(k, 1.0, nv) * mix(k, 1.0, nl));
    return light.intensity * nl * ((1.0 - fresnel) * diffuse + fresnel * glint);
}

void main() {
    vec3 base = tint * material.base_color_factor.rgb;
#ifdef HAS_BASE_COLOR_TEX
    vec4 texel = texture(material.base_color_texture, uv);
    if (texel.a < 0.5) discard;
    base *= decode(texel.rgb);
#endif
    vec3 view = normalize(cam_pos - world), normal = normalize(n);
    if (!gl_FrontFacing) normal = -normal;
    vec3 diffuse = base * (1.0 - material.metallic_factor), f0 = mix(vec3(0.04), base, material.metallic_factor);
    float ground = ambient_light.x, sky = ambient_light.y;
    float up = 0.5 + 0.5 * reflect(-view, normal).y;
    vec3 color = diffuse * mix(ground, sky, 0.5 + 0.5 * normal.y);
    color += f0 * mix(ground, 2.0 * sky, smoothstep(0.2, 0.8, up));
    color += lit(directional_lights[0], normal, view, diffuse, f0);
    color += lit(directional_lights[1], normal, view, diffuse, f0);
    frag_color = vec4(encode(clamp(color, 0.0, 1.0)), 1.0);
}
