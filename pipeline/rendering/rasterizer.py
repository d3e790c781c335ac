"""Headless OpenGL: one EGL context a process and one forward pass that draws every view of a shape at once.

pyrender supplies the EGL platform. Its own forward pass is not used: it draws and reads back one view at a
time, lights back faces as if they faced away, and multiplies vertex colours after lighting, so that they tint
the highlights too.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon.pipeline.base.errors import MachineError, UserError
from recon.pipeline.base.wording import one_line
from recon.pipeline.shapes.mesh import Wrap

Floats32 = NDArray[np.float32]

MAX_LIGHT = 10.0


@dataclass(frozen=True)
class Lights:
    """Linear radiance of the three lights: a white matte surface that faces camera and key stays just under 1.

    ambient: from the ground and from the sky; fill: along the camera's axis; key: from key_direction, in camera axes
    (x right, y up, z towards the viewer), by default from above the camera's left shoulder. unlit: none of these, a
    pixel is the surface's own colour. Raises UserError for values that cannot be drawn.
    """

    ambient: tuple[float, float] = (0.22, 0.46)
    fill: float = 0.26
    key: float = 0.42
    key_direction: tuple[float, float, float] = (-0.45, 0.75, 0.5)
    unlit: bool = False

    def __post_init__(self) -> None:
        for name, values in (("ambient", self.ambient), ("fill", (self.fill,)), ("key", (self.key,))):
            if not all(0.0 <= value <= MAX_LIGHT for value in values):
                shown = list(values) if len(values) > 1 else values[0]
                raise UserError(f"lights {name} must lie in 0..{MAX_LIGHT:g}, not {shown}")
        if not 1e-6 < float(np.linalg.norm(self.key_direction)) < 1e6:
            raise UserError(f"lights key_direction must point somewhere, not {list(self.key_direction)}")


VERTEX_SHADER = """
#version 330 core
layout(location = 0) in vec3 position;
layout(location = 1) in vec3 normal;
layout(location = 2) in vec3 color;
layout(location = 3) in vec2 finish;
layout(location = 4) in vec2 uv;
uniform mat4 view_projection;
out vec3 world; out vec3 n; out vec3 albedo; out vec2 metal_rough; out vec2 texcoord;
void main() {
    gl_Position = view_projection * vec4(position, 1.0);
    world = position; n = normal; albedo = color; metal_rough = finish; texcoord = uv;
}
"""

FRAGMENT_SHADER = """
#version 330 core
in vec3 world; in vec3 n; in vec3 albedo; in vec2 metal_rough; in vec2 texcoord;
uniform vec3 eye; uniform vec3 fill_direction; uniform vec3 key_direction;
#ifdef TEXTURED
uniform sampler2D base_color;
#endif
out vec4 srgb;

vec3 to_linear(vec3 c) { return mix(c / 12.92, pow((c + 0.055) / 1.055, vec3(2.4)), step(0.04045, c)); }
vec3 to_srgb(vec3 c) { return mix(c * 12.92, 1.055 * pow(c, vec3(1.0 / 2.4)) - 0.055, step(0.0031308, c)); }

// Lambert plus GGX with Schlick's Fresnel and Smith shadowing, radiance 1.
vec3 reflect_light(vec3 normal, vec3 view, vec3 light, vec3 diffuse, vec3 f0, float roughness) {
    float nl = max(dot(normal, light), 0.0), nv = max(dot(normal, view), 0.05);
    vec3 halfway = normalize(light + view);
    float nh = max(dot(normal, halfway), 0.0), vh = max(dot(view, halfway), 0.0);
    float a2 = pow(max(roughness, 0.2), 4.0), k = (roughness + 1.0) * (roughness + 1.0) / 8.0;
    float q = nh * nh * (a2 - 1.0) + 1.0, x = 1.0 - vh, x2 = x * x;
    vec3 fresnel = f0 + (1.0 - f0) * (x2 * x2 * x);
    float lobe = a2 / (q * q) / (4.0 * (nv * (1.0 - k) + k) * (nl * (1.0 - k) + k));
    return nl * ((1.0 - fresnel) * diffuse + fresnel * lobe);
}

void main() {
    vec3 base = albedo;
#ifdef TEXTURED
    vec4 texel = texture(base_color, texcoord);
    if (texel.a < 0.5) discard;
    base *= to_linear(texel.rgb);
#endif
    vec3 view = normalize(eye - world);
    vec3 normal = normalize(n);
    if (!gl_FrontFacing) normal = -normal;  // a wrongly wound face is lit as if it were right
#if defined(NORMALS)
    srgb = vec4((127.0 * normal + 128.0) / 255.0, 1.0);  // whole bytes: 127 n + 128
#elif defined(UNLIT)
    srgb = vec4(to_srgb(clamp(base, 0.0, 1.0)), 1.0);
#else
    vec3 diffuse = base * (1.0 - metal_rough.x), f0 = mix(vec3(0.04), base, metal_rough.x);
    vec3 sky = mix(vec3(AMBIENT_GROUND), vec3(AMBIENT_SKY), 0.5 + 0.5 * normal.y);
    // metals have no diffuse colour and would turn black without surroundings to mirror
    float up = 0.5 + 0.5 * reflect(-view, normal).y;
    vec3 color = diffuse * sky + f0 * mix(AMBIENT_GROUND, 2.0 * AMBIENT_SKY, smoothstep(0.2, 0.8, up));
    color += FILL * reflect_light(normal, view, fill_direction, diffuse, f0, metal_rough.y);
    color += KEY * reflect_light(normal, view, key_direction, diffuse, f0, metal_rough.y);
    srgb = vec4(to_srgb(clamp(color, 0.0, 1.0)), 1.0);
#endif
}
"""

ATTRIBUTES = (3, 3, 3, 2, 2)  # position, normal, linear colour, (metallic, roughness), uv
NUM_FLOATS = sum(ATTRIBUTES)
WHITE = (1.0, 1.0, 1.0, 0.0)  # what shows through an edge is white, and alpha says how much of it
NO_NORMAL = (128 / 255, 128 / 255, 128 / 255, 0.0)
MAX_FRAMEBUFFER_WIDTH = 8192  # every driver in use allows it


@dataclass(frozen=True)
class DrawRange:
    """Corners [first, first + num_corners) share a texture ([H, W, 3 or 4] uint8 sRGB, first row at the top)
    or have none; `wrap` is what it does beyond its edges."""

    first: int
    num_corners: int
    texture: NDArray[np.uint8] | None
    wrap: tuple[Wrap, Wrap] = ("repeat", "repeat")


class _Context:
    """The process's EGL context. Destroying one context ends the display of all others, so there is one and
    it stays."""

    def __init__(self) -> None:
        os.environ.setdefault("PYOPENGL_PLATFORM", "egl")
        os.environ.setdefault("LP_NUM_THREADS", "1")  # workers are processes: one core each
        if not hasattr(np, "infty"):
            np.infty = np.inf  # type: ignore[attr-defined]  # noqa: NPY201  pyrender 0.1.45 predates numpy 2
        try:
            from pyrender.platforms import egl

            device = egl.get_device_by_index(int(os.environ.get("EGL_DEVICE_ID", "0")))
            self.platform = egl.EGLPlatform(16, 16, device=device)
            self.platform.init_context()
        except Exception as error:  # a missing library shows as anything from ImportError to AttributeError
            words = f"headless OpenGL does not start ({one_line(error)})"
            chosen = [
                f"{name}={os.environ[name]}" for name in ("PYOPENGL_PLATFORM", "EGL_DEVICE_ID") if name in os.environ
            ]
            raise MachineError(
                f"{words} with {' and '.join(chosen)}: `recon-pipeline doctor` says what to install"
            ) from error
        self.pid = os.getpid()
        self.lock = threading.Lock()

    @contextmanager
    def current(self) -> Iterator[Any]:
        """Hold the context on this thread; yields the OpenGL.GL module."""
        if os.getpid() != self.pid:
            raise MachineError("an OpenGL context does not survive a fork: start render workers with 'spawn'")
        from OpenGL import EGL, GL

        with self.lock:
            try:
                self.platform.make_current()
            except Exception as error:  # drivers that were reset fail as they like
                raise MachineError(f"the OpenGL context is lost ({one_line(error)}): run the same again") from error
            try:
                yield GL
            finally:
                EGL.eglMakeCurrent(
                    self.platform._egl_display, EGL.EGL_NO_SURFACE, EGL.EGL_NO_SURFACE, EGL.EGL_NO_CONTEXT
                )


_context: _Context | None = None


def _shared_context() -> _Context:
    global _context
    if _context is None:
        _context = _Context()
    return _context


class Rasterizer:
    """Draws triangles into `num_views` square pictures, side by side in one framebuffer that is read back at once.

    Without lights it draws normals: a pixel's bytes are 127 n + 128 of the unit normal n in the axes of the corners,
    turned towards the camera's side of the face, and 128 where there is none.

    Each is drawn in a small framebuffer of its own and then copied to its place. Drawn in place, its rounding would
    depend on where that is, and a picture's bytes on which others are taken with it.
    """

    def __init__(self, resolution: int, num_views: int, samples: int, lights: Lights | None) -> None:
        self.resolution, self.num_views, self.samples, self.lights = resolution, num_views, samples, lights
        self.views_a_pass = min(num_views, max(1, MAX_FRAMEBUFFER_WIDTH // resolution))
        self.context = _shared_context()
        try:
            self._set_up(samples)
        except MachineError:
            raise
        except Exception as error:  # each driver lacks something else
            words = f"OpenGL does not give what rendering needs ({one_line(error)})"
            raise MachineError(f"{words}: `recon-pipeline doctor` draws a test picture") from error

    def _set_up(self, samples: int) -> None:
        with self.context.current() as gl:
            self._vertex_array, self._buffer = gl.glGenVertexArrays(1), gl.glGenBuffers(1)
            gl.glBindVertexArray(self._vertex_array)
            gl.glBindBuffer(gl.GL_ARRAY_BUFFER, self._buffer)
            offset = 0
            for location, size in enumerate(ATTRIBUTES):
                gl.glEnableVertexAttribArray(location)
                pointer = ctypes.c_void_p(4 * offset)
                gl.glVertexAttribPointer(location, size, gl.GL_FLOAT, gl.GL_FALSE, 4 * NUM_FLOATS, pointer)
                offset += size
            self._programs = {textured: _compile(gl, self.lights, textured) for textured in (False, True)}
            self._resolved, self._resolved_buffers = self._framebuffer(gl, self.views_a_pass, 0)
            self._drawn, self._drawn_buffers = self._framebuffer(gl, 1, samples if samples > 1 else 0)
            self.driver = ", ".join(gl.glGetString(name).decode() for name in (gl.GL_RENDERER, gl.GL_VERSION))
            """The OpenGL renderer's name and version."""

    def draw(
        self,
        corners: Floats32,
        ranges: list[DrawRange],
        camera_to_world: NDArray[np.float64],
        projection: NDArray[np.float64],
    ) -> tuple[NDArray[np.uint8], Floats32]:
        """Pictures of one shape.

        corners [3 F, 13]: see `ATTRIBUTES`; camera_to_world [V, 4, 4] and projection [4, 4]: as in OpenGL.
        Returns sRGB on white and alpha, [V, H, W, 4] uint8, and the depth buffer's values [V, H, W] in [0, 1],
        1 = background.
        """
        assert corners.dtype == np.float32 and corners.flags.c_contiguous and corners.shape[1] == NUM_FLOATS
        assert 1 <= len(camera_to_world) <= self.num_views
        with self.context.current() as gl:
            gl.glBindVertexArray(self._vertex_array)
            gl.glBindBuffer(gl.GL_ARRAY_BUFFER, self._buffer)
            gl.glBufferData(gl.GL_ARRAY_BUFFER, corners.nbytes, corners, gl.GL_STREAM_DRAW)
            # a picture that many primitives share goes up once
            images = {(id(r.texture), r.wrap): r.texture for r in ranges if r.texture is not None}
            names = {key: _upload(gl, image, key[1]) for key, image in images.items()}
            textures = [names.get((id(r.texture), r.wrap)) for r in ranges]
            passes = [
                self._draw_pass(gl, ranges, textures, camera_to_world[i : i + self.views_a_pass], projection)
                for i in range(0, len(camera_to_world), self.views_a_pass)
            ]
            if names:
                gl.glDeleteTextures(list(names.values()))
        color = passes[0][0] if len(passes) == 1 else np.concatenate([p[0] for p in passes])
        return color, np.concatenate([p[1] for p in passes])

    def close(self) -> None:
        """Free this rasterizer's buffers; the context stays for the others of the process."""
        with self.context.current() as gl:
            for program, _ in self._programs.values():
                gl.glDeleteProgram(program)
            gl.glDeleteFramebuffers(2, [self._resolved, self._drawn])
            for buffers in (self._resolved_buffers, self._drawn_buffers):
                gl.glDeleteRenderbuffers(len(buffers), buffers)
            gl.glDeleteBuffers(1, [self._buffer])
            gl.glDeleteVertexArrays(1, [self._vertex_array])

    def _framebuffer(self, gl: Any, num_views: int, samples: int) -> tuple[int, list[int]]:
        framebuffer = gl.glGenFramebuffers(1)
        gl.glBindFramebuffer(gl.GL_FRAMEBUFFER, framebuffer)
        buffers = []
        formats = ((gl.GL_RGBA8, gl.GL_COLOR_ATTACHMENT0), (gl.GL_DEPTH_COMPONENT24, gl.GL_DEPTH_ATTACHMENT))
        for storage, attachment in formats:
            buffer = gl.glGenRenderbuffers(1)
            gl.glBindRenderbuffer(gl.GL_RENDERBUFFER, buffer)
            size = (storage, num_views * self.resolution, self.resolution)
            gl.glRenderbufferStorageMultisample(gl.GL_RENDERBUFFER, samples, *size)
            gl.glFramebufferRenderbuffer(gl.GL_FRAMEBUFFER, attachment, gl.GL_RENDERBUFFER, buffer)
            buffers.append(buffer)
        status = gl.glCheckFramebufferStatus(gl.GL_FRAMEBUFFER)
        if status != gl.GL_FRAMEBUFFER_COMPLETE:
            raise RuntimeError(
                f"OpenGL gave no {self.resolution} px framebuffer with {samples} samples (status {status})"
            )
        return framebuffer, buffers

    def _draw_pass(
        self,
        gl: Any,
        ranges: list[DrawRange],
        textures: list[int | None],
        poses: NDArray[np.float64],
        projection: NDArray[np.float64],
    ) -> tuple[NDArray[np.uint8], Floats32]:
        side, width = self.resolution, self.views_a_pass * self.resolution
        gl.glEnable(gl.GL_DEPTH_TEST)
        gl.glDisable(gl.GL_CULL_FACE)
        gl.glClearColor(*(WHITE if self.lights else NO_NORMAL))
        gl.glViewport(0, 0, side, side)
        for i, pose in enumerate(poses):
            gl.glBindFramebuffer(gl.GL_FRAMEBUFFER, self._drawn)
            gl.glClear(gl.GL_COLOR_BUFFER_BIT | gl.GL_DEPTH_BUFFER_BIT)
            self._draw_view(gl, ranges, textures, pose, projection)
            gl.glBindFramebuffer(gl.GL_DRAW_FRAMEBUFFER, self._resolved)
            for bit in (gl.GL_COLOR_BUFFER_BIT, gl.GL_DEPTH_BUFFER_BIT):
                place = (i * side, 0, (i + 1) * side, side)
                gl.glBlitFramebuffer(0, 0, side, side, *place, bit, gl.GL_NEAREST)
        gl.glBindFramebuffer(gl.GL_READ_FRAMEBUFFER, self._resolved)
        color = np.empty((side, self.views_a_pass, side, 4), np.uint8)
        depth = np.empty((side, self.views_a_pass, side), np.float32)
        gl.glReadPixels(0, 0, width, side, gl.GL_RGBA, gl.GL_UNSIGNED_BYTE, color)
        gl.glReadPixels(0, 0, width, side, gl.GL_DEPTH_COMPONENT, gl.GL_FLOAT, depth)
        used = slice(0, len(poses))  # OpenGL's first row is the bottom one
        return color[::-1, used].swapaxes(0, 1), depth[::-1, used].swapaxes(0, 1)

    def _draw_view(
        self,
        gl: Any,
        ranges: list[DrawRange],
        textures: list[int | None],
        pose: NDArray[np.float64],
        projection: NDArray[np.float64],
    ) -> None:
        view_projection = (projection @ np.linalg.inv(pose)).astype(np.float32)
        direction = np.array((self.lights or Lights()).key_direction)
        key = pose[:3, :3] @ (direction / np.linalg.norm(direction))
        bound = None
        for draw_range, texture in zip(ranges, textures, strict=True):
            program, uniforms = self._programs[texture is not None]
            if program != bound:
                bound = program
                gl.glUseProgram(program)
                gl.glUniformMatrix4fv(uniforms["view_projection"], 1, gl.GL_TRUE, view_projection)
                gl.glUniform3f(uniforms["eye"], *pose[:3, 3])
                gl.glUniform3f(uniforms["fill_direction"], *pose[:3, 2])
                gl.glUniform3f(uniforms["key_direction"], *key)
            if texture is not None:
                gl.glBindTexture(gl.GL_TEXTURE_2D, texture)
            gl.glDrawArrays(gl.GL_TRIANGLES, draw_range.first, draw_range.num_corners)


def _compile(gl: Any, lights: Lights | None, textured: bool) -> tuple[int, dict[str, int]]:
    from OpenGL.GL import shaders

    lines = ["#define TEXTURED"] if textured else []
    if lights is None:
        lines.append("#define NORMALS")
    elif lights.unlit:
        lines.append("#define UNLIT")
    else:
        values = (*lights.ambient, lights.fill, lights.key)
        names = ("AMBIENT_GROUND", "AMBIENT_SKY", "FILL", "KEY")
        lines += [f"#define {name} {value:.9f}" for name, value in zip(names, values, strict=True)]
    header, body = FRAGMENT_SHADER.lstrip().split("\n", 1)  # #version must stay the first line
    fragment = "\n".join([header, *lines, body])
    program = shaders.compileProgram(
        shaders.compileShader(VERTEX_SHADER.lstrip(), gl.GL_VERTEX_SHADER),
        shaders.compileShader(fragment, gl.GL_FRAGMENT_SHADER),
        validate=False,  # validation wants a bound framebuffer and tells nothing more
    )
    uniforms = ("view_projection", "eye", "fill_direction", "key_direction")
    return program, {name: gl.glGetUniformLocation(program, name) for name in uniforms}


def _upload(gl: Any, image: NDArray[np.uint8], wrap: tuple[Wrap, Wrap]) -> int:
    """A mipmapped texture: always RGBA, as rows of 3-byte texels break OpenGL's row alignment."""
    height, width, num_channels = image.shape
    rgba = np.full((height, width, 4), 255, np.uint8)
    rgba[..., :num_channels] = image[::-1]  # v = 0 is the bottom row
    texture: int = gl.glGenTextures(1)
    gl.glBindTexture(gl.GL_TEXTURE_2D, texture)
    gl.glTexImage2D(gl.GL_TEXTURE_2D, 0, gl.GL_RGBA8, width, height, 0, gl.GL_RGBA, gl.GL_UNSIGNED_BYTE, rgba)
    gl.glGenerateMipmap(gl.GL_TEXTURE_2D)
    modes = {"repeat": gl.GL_REPEAT, "mirror": gl.GL_MIRRORED_REPEAT, "clamp": gl.GL_CLAMP_TO_EDGE}
    for parameter, value in (
        (gl.GL_TEXTURE_MIN_FILTER, gl.GL_LINEAR_MIPMAP_LINEAR),
        (gl.GL_TEXTURE_MAG_FILTER, gl.GL_LINEAR),
        (gl.GL_TEXTURE_WRAP_S, modes[wrap[0]]),
        (gl.GL_TEXTURE_WRAP_T, modes[wrap[1]]),
    ):
        gl.glTexParameteri(gl.GL_TEXTURE_2D, parameter, value)
    return texture
