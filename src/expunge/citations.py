"""Who is to be cited for what: BibTeX for every method, judge and model that a run can use.

A new method adds its entry, and its name to the table of its kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Keys = tuple[str, ...]

ERASERS: Mapping[str, Keys] = {
    "uce": ("gandikota2024unified",),
    "rece": ("gong2024reliable",),
    "speed": ("li2026speed",),
    "mace": ("lu2024mace",),
    "double-projection": ("zhang2026closed",),
    "esd": ("gandikota2023erasing",),
    "concept-ablation": ("kumari2023ablating",),
    "selective-amnesia": ("heng2023selective",),
    "spm": ("lyu2024one",),
    "receler": ("huang2024receler",),
    "advunlearn": ("zhang2024defensive",),
    "eap": ("bui2024erasing",),
    "stereo": ("srivatsan2025stereo",),
    "ant": ("li2025set",),
    "trce": ("chen2025trce",),
    "eraseanything": ("gao2025eraseanything",),
    "trace": ("carter2025trace",),
    "fade": ("fu2025fade",),
}
ATTACKS: Mapping[str, Keys] = {
    "plain": (),
    "textual-inversion": ("gal2023image", "pham2024circumventing"),
}
GUARDS: Mapping[str, Keys] = {
    "irece": ("weng2025merasurebench",),
}
JUDGES: Mapping[str, Keys] = {
    "miniature-conv": (),
    "miniature-patch": ("yu2022s2mlp",),
    "clip": ("radford2021learning",),
}
PROTOCOLS: Mapping[str, Keys] = {
    "objects": ("lu2024mace", "fu2025fade"),
    "people": ("lu2024mace", "carter2025trace", "fu2025fade"),
    "styles": ("gandikota2023erasing", "carter2025trace", "fu2025fade"),
    "explicit": ("schramowski2023safe", "carter2025trace", "fu2025fade"),
}
MEASURES: Mapping[str, Keys] = {
    "fid": ("heusel2017gans",),
    "clip": ("hessel2021clipscore",),
}
MODELS: Mapping[str, Keys] = {
    "stable-diffusion-xl": ("podell2024sdxl",),
    "stable-diffusion-3": ("esser2024scaling",),
    "stable-diffusion": ("rombach2022high",),
    "flux": ("blackforestlabs2024flux",),
}
"""Parts of a model's name on the hub, the first that fits; bundled models are this project's."""

TABLES: Mapping[str, Mapping[str, Keys]] = {
    "eraser": ERASERS,
    "attack": ATTACKS,
    "guard": GUARDS,
    "judge": JUDGES,
    "protocol": PROTOCOLS,
    "measure": MEASURES,
}


def keys(kind: str, name: str) -> Keys | None:
    """What is to be cited for something; None where that is not known.

    Args:
        kind: of thing, as in `names`.
        name: perhaps with settings; dashes do not matter.
    """
    bare = name.partition(":")[0].strip().lower().replace("-", "")
    found = {known.replace("-", ""): cited for known, cited in TABLES[kind].items()}
    return found.get(bare)


def model_keys(name: str) -> Keys:
    """What is to be cited for a base model; nothing where that cannot be told from its name."""
    plain = name.lower().replace("_", "-")
    if plain.startswith("miniature"):
        return ()
    return next((cited for part, cited in MODELS.items() if part in plain), ())


def bibtex(cited: Iterable[str]) -> str:
    """The entries of these keys, each once."""
    return "\n\n".join(ENTRIES[key] for key in dict.fromkeys(cited))


def _entry(kind: str, key: str, **fields: str) -> tuple[str, str]:
    lines = [f"  {name:<9} = {{{value}}}," for name, value in fields.items()]
    return key, "\n".join([f"@{kind}{{{key},", *lines, "}"])


def _paper(
    key: str, authors: str, title: str, venue: str, year: int, **more: str
) -> tuple[str, str]:
    names = {"author": authors, "title": f"{{{title}}}", "booktitle": venue, "year": str(year)}
    return _entry("inproceedings", key, **names, **more)


def _preprint(key: str, authors: str, title: str, arxiv: str, year: int) -> tuple[str, str]:
    return _entry(
        "misc",
        key,
        author=authors,
        title=f"{{{title}}}",
        year=str(year),
        eprint=arxiv,
        archiveprefix="arXiv",
    )


_CVPR = "Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition"
_ICCV = "Proceedings of the IEEE/CVF International Conference on Computer Vision"
_WACV = "Proceedings of the IEEE/CVF Winter Conference on Applications of Computer Vision"
_ECCV = "European Conference on Computer Vision"
_NEURIPS = "Advances in Neural Information Processing Systems"
_ICML = "International Conference on Machine Learning"
_ICLR = "International Conference on Learning Representations"

ENTRIES: Mapping[str, str] = dict(
    [
        _paper(
            "gandikota2023erasing",
            "Gandikota, Rohit and Materzy{\\'n}ska, Joanna and Fiotto-Kaufman, Jaden and "
            "Bau, David",
            "Erasing Concepts from Diffusion Models",
            _ICCV,
            2023,
            pages="2426--2436",
        ),
        _paper(
            "gandikota2024unified",
            "Gandikota, Rohit and Orgad, Hadas and Belinkov, Yonatan and Materzy{\\'n}ska, Joanna "
            "and Bau, David",
            "Unified Concept Editing in Diffusion Models",
            _WACV,
            2024,
            pages="5111--5120",
        ),
        _paper(
            "gong2024reliable",
            "Gong, Chao and Chen, Kai and Wei, Zhipeng and Chen, Jingjing and Jiang, Yu-Gang",
            "Reliable and Efficient Concept Erasure of Text-to-Image Diffusion Models",
            _ECCV,
            2024,
            pages="73--88",
        ),
        _paper(
            "li2026speed",
            "Li, Ouxiang and Wang, Yuan and Hu, Xinting and Jiang, Houcheng and Liang, Tao and "
            "Hao, Yanbin and Ma, Guojun and Feng, Fuli",
            "SPEED: Scalable, Precise, and Efficient Concept Erasure for Diffusion Models",
            _ICLR,
            2026,
        ),
        _paper(
            "lu2024mace",
            "Lu, Shilin and Wang, Zilan and Li, Leyang and Liu, Yanzhu and Kong, Adams Wai-Kin",
            "MACE: Mass Concept Erasure in Diffusion Models",
            _CVPR,
            2024,
            pages="6430--6440",
        ),
        _paper(
            "zhang2026closed",
            "Zhang, Chi and Cheng, Jingpu and Wang, Zhixian and Liu, Ping",
            "Closed-Form Concept Erasure via Double Projections",
            _CVPR,
            2026,
            note="arXiv:2604.10032",
        ),
        _paper(
            "kumari2023ablating",
            "Kumari, Nupur and Zhang, Bingliang and Wang, Sheng-Yu and Shechtman, Eli and Zhang, "
            "Richard and Zhu, Jun-Yan",
            "Ablating Concepts in Text-to-Image Diffusion Models",
            _ICCV,
            2023,
        ),
        _paper(
            "heng2023selective",
            "Heng, Alvin and Soh, Harold",
            "Selective Amnesia: A Continual Learning Approach to Forgetting in Deep Generative "
            "Models",
            _NEURIPS,
            2023,
        ),
        _paper(
            "lyu2024one",
            "Lyu, Mengyao and Yang, Yuhong and Hong, Haiwen and Chen, Hui and Jin, Xuan and He, "
            "Yuan and Xue, Hui and Han, Jungong and Ding, Guiguang",
            "One-Dimensional Adapter to Rule Them All: Concepts, Diffusion Models and Erasing "
            "Applications",
            _CVPR,
            2024,
        ),
        _paper(
            "huang2024receler",
            "Huang, Chi-Pin and Chang, Kai-Po and Tsai, Chung-Ting and Lai, Yung-Hsuan and Yang, "
            "Fu-En and Wang, Yu-Chiang Frank",
            "Receler: Reliable Concept Erasing of Text-to-Image Diffusion Models via Lightweight "
            "Erasers",
            _ECCV,
            2024,
        ),
        _paper(
            "zhang2024defensive",
            "Zhang, Yimeng and Chen, Xin and Jia, Jinghan and Zhang, Yihua and Fan, Chongyu and "
            "Liu, Jiancheng and Hong, Mingyi and Ding, Ke and Liu, Sijia",
            "Defensive Unlearning with Adversarial Training for Robust Concept Erasure in "
            "Diffusion Models",
            _NEURIPS,
            2024,
            pages="36748--36776",
        ),
        _paper(
            "bui2024erasing",
            "Bui, Anh Tuan and Vuong, Long Tung and Doan, Khanh and Le, Trung and Montague, Paul "
            "and Abraham, Tamas and Phung, Dinh",
            "Erasing Undesirable Concepts in Diffusion Models with Adversarial Preservation",
            _NEURIPS,
            2024,
        ),
        _paper(
            "srivatsan2025stereo",
            "Srivatsan, Koushik and Shamshad, Fahad and Naseer, Muzammal and Patel, Vishal M. and "
            "Nandakumar, Karthik",
            "STEREO: A Two-Stage Framework for Adversarially Robust Concept Erasing from "
            "Text-to-Image Diffusion Models",
            _CVPR,
            2025,
            pages="23765--23774",
        ),
        _preprint(
            "li2025set",
            "Li, Leyang and Lu, Shilin and Ren, Yan and Kong, Adams Wai-Kin",
            "Set You Straight: Auto-Steering Denoising Trajectories to Sidestep Unwanted Concepts",
            "2504.12782",
            2025,
        ),
        _paper(
            "chen2025trce",
            "Chen, Ruidong and Guo, Honglin and Wang, Lanjun and Zhang, Chenyu and Nie, Weizhi "
            "and Liu, An-An",
            "TRCE: Towards Reliable Malicious Concept Erasure in Text-to-Image Diffusion Models",
            _ICCV,
            2025,
        ),
        _paper(
            "gao2025eraseanything",
            "Gao, Daiheng and Lu, Shilin and Zhou, Wenbo and Chu, Jiaming and Zhang, Jie and Jia, "
            "Mengxi and Zhang, Bang and Fan, Zhaoxin and Zhang, Weiming",
            "EraseAnything: Enabling Concept Erasure in Rectified Flow Transformers",
            _ICML,
            2025,
        ),
        _preprint(
            "carter2025trace",
            "Carter, Finn",
            "TRACE: Trajectory-Constrained Concept Erasure in Diffusion Models",
            "2505.23312",
            2025,
        ),
        _preprint(
            "fu2025fade",
            "Fu, Zixuan and Ren, Yan and Carter, Finn and Wang, Chenyue and Niu, Ze and Yu, "
            "Dacheng and Davis, Emily and Zhang, Bo",
            "FADE: Adversarial Concept Erasure in Flow Models",
            "2507.12283",
            2025,
        ),
        _paper(
            "gal2023image",
            "Gal, Rinon and Alaluf, Yuval and Atzmon, Yuval and Patashnik, Or and Bermano, Amit "
            "Haim and Chechik, Gal and Cohen-Or, Daniel",
            "An Image is Worth One Word: Personalizing Text-to-Image Generation using Textual "
            "Inversion",
            _ICLR,
            2023,
        ),
        _paper(
            "pham2024circumventing",
            "Pham, Minh and Marshall, Kelly O. and Cohen, Niv and Mittal, Govind and Hegde, "
            "Chinmay",
            "Circumventing Concept Erasure Methods For Text-to-Image Generative Models",
            _ICLR,
            2024,
        ),
        _preprint(
            "weng2025merasurebench",
            "Weng, Ju-Hsuan and Liao, Jia-Wei and Chou, Cheng-Fu and Chen, Jun-Cheng",
            "M-ErasureBench: A Comprehensive Multimodal Evaluation Benchmark for Concept Erasure "
            "in Diffusion Models",
            "2512.22877",
            2025,
        ),
        _paper(
            "yu2022s2mlp",
            "Yu, Tan and Li, Xu and Cai, Yunfeng and Sun, Mingming and Li, Ping",
            "S$^2$-MLP: Spatial-Shift MLP Architecture for Vision",
            _WACV,
            2022,
        ),
        _paper(
            "radford2021learning",
            "Radford, Alec and Kim, Jong Wook and Hallacy, Chris and Ramesh, Aditya and Goh, "
            "Gabriel and Agarwal, Sandhini and Sastry, Girish and Askell, Amanda and Mishkin, "
            "Pamela and Clark, Jack and Krueger, Gretchen and Sutskever, Ilya",
            "Learning Transferable Visual Models From Natural Language Supervision",
            _ICML,
            2021,
        ),
        _paper(
            "schramowski2023safe",
            'Schramowski, Patrick and Brack, Manuel and Deiseroth, Bj{\\"o}rn and Kersting, '
            "Kristian",
            "Safe Latent Diffusion: Mitigating Inappropriate Degeneration in Diffusion Models",
            _CVPR,
            2023,
            pages="22522--22531",
        ),
        _paper(
            "heusel2017gans",
            "Heusel, Martin and Ramsauer, Hubert and Unterthiner, Thomas and Nessler, Bernhard "
            "and Hochreiter, Sepp",
            "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium",
            _NEURIPS,
            2017,
        ),
        _paper(
            "hessel2021clipscore",
            "Hessel, Jack and Holtzman, Ari and Forbes, Maxwell and Le Bras, Ronan and Choi, Yejin",
            "CLIPScore: A Reference-free Evaluation Metric for Image Captioning",
            "Proceedings of the 2021 Conference on Empirical Methods in Natural Language "
            "Processing",
            2021,
        ),
        _paper(
            "rombach2022high",
            "Rombach, Robin and Blattmann, Andreas and Lorenz, Dominik and Esser, Patrick and "
            'Ommer, Bj{\\"o}rn',
            "High-Resolution Image Synthesis with Latent Diffusion Models",
            _CVPR,
            2022,
            pages="10684--10695",
        ),
        _paper(
            "podell2024sdxl",
            "Podell, Dustin and English, Zion and Lacey, Kyle and Blattmann, Andreas and Dockhorn, "
            'Tim and M{\\"u}ller, Jonas and Penna, Joe and Rombach, Robin',
            "SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis",
            _ICLR,
            2024,
        ),
        _paper(
            "esser2024scaling",
            "Esser, Patrick and Kulal, Sumith and Blattmann, Andreas and Entezari, Rahim and "
            'M{\\"u}ller, Jonas and Saini, Harry and Levi, Yam and Lorenz, Dominik and Sauer, Axel '
            "and Boesel, Frederic and Podell, Dustin and Dockhorn, Tim and English, Zion and "
            "Rombach, Robin",
            "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis",
            _ICML,
            2024,
        ),
        _entry(
            "misc",
            "blackforestlabs2024flux",
            author="{Black Forest Labs}",
            title="{FLUX}",
            year="2024",
            howpublished="\\url{https://github.com/black-forest-labs/flux}",
        ),
    ]
)
"""Key -> BibTeX."""
