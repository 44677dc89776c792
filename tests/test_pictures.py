import numpy as np

from rldistill.play.pictures import indexed, resized


def test_few_colours_are_indexed_without_loss() -> None:
    image = np.random.default_rng(0).choice(np.array([0, 1, 128, 255], dtype=np.uint8), size=(9, 7, 3))
    places, palette = indexed(image)
    assert places.shape == (9, 7)
    assert len(palette) == len({tuple(pixel) for pixel in image.reshape(-1, 3).tolist()})
    assert np.array_equal(palette[places], image)
    row, colours = indexed(image[2])
    assert np.array_equal(colours[row], image[2]), "pixels of any arrangement"


def test_many_colours_are_reduced_to_as_many_as_are_asked_for() -> None:
    grey = np.arange(0, 256, 4, dtype=np.uint8)
    image = np.stack(np.broadcast_arrays(grey[:, None], grey[None, :], np.uint8(90)), axis=2)
    for most in (255, 16):
        places, palette = indexed(image, most)
        assert places.max() < most
        error = np.abs(palette[places].astype(int) - image).max()
        assert error < 256 / most**0.5, "no colour is far from what it stands for"


def test_grown_pixels_stay_squares_and_shrunk_ones_are_averaged() -> None:
    image = np.array([[[0, 0, 0], [200, 100, 50]]], dtype=np.uint8)
    assert np.array_equal(resized(image, 6, 3), image.repeat(3, axis=0).repeat(3, axis=1))
    assert resized(image, 1, 1).tolist() == [[[100, 50, 25]]]
    assert resized(image, 2, 1) is image
