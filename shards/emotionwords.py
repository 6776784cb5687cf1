"""How emotions are called, in the spellings and languages that corpora of own recordings use.

Only words that mean one emotion wherever they occur stand here: Chinese and Japanese 平静, for one, is calm to some
corpora and neutral to others. Case, accents, and blanks against hyphens or underscores make no difference.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_WORDS = {
    "anger": """
        ang, angry, wut, wütend, wuetend, zorn, zornig, ärger, aerger, verärgert, verärgerung,
        colère, en colère, fâché, ira, enojo, enojado, enfado, enfadado, rabia, furia, rabbia,
        arrabbiato, raiva, zangado, boos, boosheid, woede, złość, zlosc, gniew, zły, öfke, öfkeli,
        kızgın, kizgin, kızgınlık, sinirli, ilska, 愤怒, 憤怒, 生气, 生氣, 怒, 怒り, гнев, злость, злой, 분노,
        화남, غضب, غاضب
    """,
    "boredom": """
        bor, bored, boredem, langeweile, gelangweilt, ennui, aburrimiento, aburrido, noia, annoiato,
        tédio, verveling, verveeld, znudzenie, nuda, sıkılmış, 无聊, 無聊, 退屈, скука, 지루함, ملل
    """,
    "calm": """
        ruhig, ruhe, gelassen, calme, calma, tranquilo, rustig, spokojny, spokój, sakin, calmo,
        спокойствие, هدوء
    """,
    "contempt": """
        contemptuous, verachtung, mépris, desprecio, disprezzo, desprezo, minachting, pogarda,
        küçümseme, 轻蔑, 輕蔑, 軽蔑, 蔑视, презрение, 경멸
    """,
    "disgust": """
        dis, disgusted, ekel, angeekelt, angewidert, dégoût, degout, dégoûté, asco, asqueado,
        disgusto, disgustato, nojo, aversão, walging, afschuw, wstręt, wstret, odraza, obrzydzenie,
        iğrenme, tiksinti, tiksinme, avsky, 厌恶, 厭惡, 讨厌, 嫌悪, отвращение, 혐오, اشمئزاز
    """,
    "excitement": """
        exc, excited, aufgeregt, begeisterung, entusiasmo, 兴奋, 興奮, возбуждение
    """,
    "fear": """
        fea, fearful, afraid, angst, ängstlich, aengstlich, furcht, peur, miedo, asustado, temor,
        paura, spaventato, medo, bang, bangheid, strach, korku, korkmuş, rädsla, 恐惧, 恐懼, 害怕, 惧, 恐れ,
        恐怖, страх, 두려움, 공포, خوف
    """,
    "frustration": """
        fru, frustrated, frustriert, frustración, frustrado, frustrazione, frustração, frustratie
    """,
    "happiness": """
        hap, happy, joy, freude, freudig, fröhlich, froehlich, glück, glücklich, gluecklich, joie,
        heureux, heureuse, bonheur, alegría, alegria, alegre, felicidad, feliz, felicità, felice,
        gioia, felicidade, blij, blijdschap, vreugde, geluk, radość, radosc, szczęście, szczescie,
        radosny, mutlu, mutluluk, neşe, glädje, glad, 高兴, 高興, 快乐, 快樂, 开心, 開心, 喜, 喜悦, 喜び, 嬉しい,
        радость, счастье, радостный, 행복, 기쁨, سعادة, فرح
    """,
    "neutral": """
        neu, neutre, neutro, neutra, neutrale, neutralidad, neutraal, neutralny, neutralna,
        neutralność, nötr, neutralt, 中性, 中立, ニュートラル, нейтральный, нейтральная, нейтрально,
        нейтральность, 중립, محايد
    """,
    "other": """
        oth, andere, anderes, sonstige, autre, otro, otra, altro, outro, overig, inne, diğer, 其他,
        その他, другое
    """,
    "sadness": """
        sad, trauer, traurig, traurigkeit, tristesse, triste, tristeza, tristezza, verdriet,
        verdrietig, droevig, smutek, smutny, üzgün, uzgun, üzüntü, sorg, 悲伤, 悲傷, 伤心, 傷心, 难过, 難過, 悲,
        悲しみ, 悲しい, грусть, печаль, грустный, 슬픔, حزن, حزين
    """,
    "surprise": """
        sur, surprised, überraschung, überrascht, ueberraschung, ueberrascht, surpris, sorpresa,
        sorprendido, sorpreso, surpresa, surpreso, verrassing, verrast, zdziwienie, zaskoczenie,
        zaskoczony, şaşkın, saskin, şaşkınlık, şaşırma, överraskning, 惊讶, 驚訝, 惊奇, 吃惊, 惊, 驚き,
        удивление, 놀람, 놀라움, دهشة, مفاجأة
    """,
}


@lru_cache(maxsize=4096)
def folded(word: str) -> str:
    """Return `word` as it is compared: no case, no accents, single blanks."""
    decomposed = unicodedata.normalize("NFKD", word.casefold().replace("ı", "i").replace("ł", "l"))
    letters = "".join(sign for sign in decomposed if unicodedata.category(sign) != "Mn")
    return re.sub(r"[\s_-]+", " ", letters).strip()


KNOWN_WORDS = {
    folded(word.strip()): emotion for emotion, words in _WORDS.items() for word in (emotion, *words.split(","))
}
"""The emotion of every known word, by the word as `folded`."""
