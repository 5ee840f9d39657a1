# SPDX-License-Identifier: Apache-2.0
"""Bags of videos: the video's own times, and of a damaged one what there is."""

from fractions import Fraction

import av
from click.testing import CliRunner
import numpy as np
import pytest
from rosbags.highlevel import AnyReader

from drift_ros.commands.main import main

TIMES = np.cumsum([0.0, 0.04, 0.04, 0.3, 0.02, 0.04, 0.1, 0.04, 0.04, 0.04])


def write(path, codec='libx264', pix_fmt='yuv420p', times=TIMES):
    with av.open(str(path), 'w') as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        for index, seconds in enumerate(times):
            values = np.random.default_rng(index).integers(0, 255, (48, 64, 3), np.uint8)
            frame = av.VideoFrame.from_ndarray(values, 'rgb24')
            base = Fraction(1, 1000) if path.suffix == '.mp4' else Fraction(1, 25)
            frame.time_base, frame.pts = base, round(seconds / base)
            stream.codec_context.time_base = base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def stamps(bag):
    with AnyReader([bag]) as reader:
        chosen = [item for item in reader.connections if item.topic == '/camera/image_raw']
        return [time for _, time, _ in reader.messages(connections=chosen)]


@pytest.mark.parametrize('rate', [None, '10'])
def test_stamps_are_the_times_of_the_video_unless_a_rate_is_asked_for(rate, tmp_path):
    video, bag = write(tmp_path / 'clip.mp4'), tmp_path / 'bag'
    options = ['--rate', rate] if rate else []
    result = CliRunner().invoke(main, ['bag', 'from-video', str(video), str(bag), *options])
    assert result.exit_code == 0, result.output
    found = np.subtract(stamps(bag), stamps(bag)[0]) / 1e9
    expected = np.arange(len(TIMES)) / 10 if rate else TIMES
    np.testing.assert_allclose(found, expected, atol=1.5e-3)


def test_of_a_damaged_video_what_there_is_is_kept_and_the_rest_said(tmp_path):
    times = np.arange(12) / 25
    video, bag = write(tmp_path / 'clip.avi', 'mjpeg', 'yuvj420p', times), tmp_path / 'bag'
    with av.open(str(video)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0)]
    video.write_bytes(video.read_bytes()[: places[7][0] + 20])
    result = CliRunner().invoke(main, ['bag', 'from-video', str(video), str(bag)])
    assert result.exit_code == 1 and 'its header promises 12 frames' in result.output
    assert 7 <= len(stamps(bag)) <= 8
