"""File names as captions: generated names are none, and numbers and dates are left out."""

from __future__ import annotations

import pytest

from gradina.training.data.filename_captions import caption_from_filename, is_generated

CAMERAS = """
IMG_1234|IMG_1|img1|IMG_1234 (2)|IMG_E1234|IMG_1234-edited|IMG-20230101-WA0001|IMG_20200101_111111_Burst01
DSC0001|cropped-IMG_1
DSC_0001|DSC01234-2|_DSC1234|dsc00001|DSCN1234|_MG_1234|P1010001|PXL_20230101_123456789|PXL_20230101_123456789.MP
MVIMG_20200101_111111|20230101_123456|20230101_123456_HDR|Screenshot 2023-01-01 at 10.11.12|Screenshot_20230101-101112
Screenshot from 2023-01-01 12-00-00|Screen Shot 2020-01-01 at 1.02.03 PM|WhatsApp Image 2023-01-01 at 12.00.00 (1)
image001|image (2)|Photo 12|photo-1518791841217-8f162f1e1131|FB_IMG_1234567890|received_123456|GOPR0001|DJI_0001
frame_0001|ComfyUI_00001_|00012-1234567|100_0001|0001|1|550e8400-e29b-41d4-a716-446655440000|signal-2023-01-01-123456
Captura de pantalla 2023-01-01 123456|Schermata 2023-01-01 alle 12.34.56|Снимок экрана 2023-01-01 в 12.34.56
スクリーンショット 2023-01-01 12.34.56|截屏2023-01-01 12.34.56|스크린샷 2023-01-01 오후 1.23.45|微信图片_20230101123456
Zrzut ekranu 2023-01-01|Skärmavbild 2023-01-01 kl. 12.34.56|写真 1|KakaoTalk_20230101_123456789|mmexport1600000000000
Screenshot_20230101-123456_Chrome|S__12345678|photo_5123456789012345678_y|WIN_20230101_12_34_56_Pro|vlcsnap-2023-01-01-12h34m56s789|IMG_1234_1024x1024
_R5A1234|G0010001|IMAG0001|SAM_1234|n02099601_1234|COCO_train2014_000000000009|00000IMG_00000_BURST20230101123456
IMG_1234.HEIC|DSC_0001-Enhanced-NR|untitled|unnamed|FullSizeRender|Sin título-1|无标题|tempImageAbC123
d41d8cd98f00b204e9800998ecf8427e|Bildschirmfoto 2023-01-01 um 12.00.00|Capture d’écran 2023-01-01 à 12.00.00
""".strip().replace("\n", "|").split("|")  # fmt: skip


OURS = """
a seven|a red boat|two boats_03|photo|image|b|seven 1|cat1|dog 12|facade 2|deadbeef|portrait 1|night 2
a picture of 2 dogs|a scan of a hand 3|7 dwarfs|sam 1|Sam_2|facade01|line 1|win 2|test 1|a photo 1|2girls 1boy|CAT_0001
1girl|3d|4b|a100|c130|SYNOPHOTO_THUMB|edit 2|file
""".strip().replace("\n", "|").split("|")  # fmt: skip


@pytest.mark.parametrize("stem", CAMERAS)
def test_generated_names_are_no_captions(stem: str) -> None:
    assert is_generated(stem)
    assert caption_from_filename(stem) == ""


@pytest.mark.parametrize("stem", OURS)
def test_other_names_are_captions(stem: str) -> None:
    assert not is_generated(stem)
    assert caption_from_filename(stem)


@pytest.mark.parametrize(
    ("stem", "words"),
    [
        ("a_red-boat (2)", "a red boat"),
        ("00012-1234567-a red boat", "a red boat"),
        ("a red boat_20230101_123456", "a red boat"),
        ("a red boat 2023-01-01 12-34-56", "a red boat"),
        ("me_a_red_boat_550e8400-e29b-41d4-a716-446655440000", "me a red boat"),
        ("boat0001", "boat"),
        ("a%20red%20boat", "a red boat"),
        ("a red boat.jpg", "a red boat"),
        ("a red boat - Copy (2)", "a red boat"),
        ("a copy of a boat", "a copy of a boat"),
        ("boat12", "boat12"),
        ("a 2001 boat", "a 2001 boat"),
        ("2001 boats", "2001 boats"),
    ],
)
def test_numbers_and_dates_are_left_out(stem: str, words: str) -> None:
    assert caption_from_filename(stem) == words
