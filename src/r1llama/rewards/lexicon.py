"""What words say about the value beside them, in the languages we grade: negate, doubt, suppose, report, take back.

One table for all languages (en de fr es it pt tr ru ar hi zh ja ko): a cue works alike wherever it comes from. An
underscore joins words that mean something only together, `*` ends a stem. Scripts written without spaces, and those
that attach particles to words (Arabic), are searched for parts of words.
"""

import re
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

NEGATION, WRONG, HEDGE, CONDITION, REPORT, RESET, OR, RELATIVE, RIGHT, PRONOUN = (1 << i for i in range(10))
RETRACT, GIVE_UP, EXAMPLE, SELF, QUESTION, COMPARE, NEUTRAL, OTHERWISE, OPINION, INTERJECTION = (
    1 << i for i in range(10, 20)
)
REVISION, NOUN, JOIN, COPULA, OTHER, FIRST_PERSON, IF, COUNTERFACTUAL, CONCESSION, BENIGN = (
    1 << i for i in range(20, 30)
)
THAT, ASSERTION = 1 << 31, 1 << 32

_SPACED = {
    NEGATION: """nadie ninguém personne niemand keiner никто nessuno exclude excludes excluded eliminate discard
        dismiss not no never cannot neither nor none nobody nothing no_one doubt doubts doubtful deny denies
        hardly anything_but nowhere_near far_from other_than except excluding instead_of rather_than rule_out
        ruled_out rules_out reject* refuse* unlike unlikely impossible used_to_be no_longer opposite_of
        mistaken_for disagree* without n't don't doesn't didn't isn't aren't wasn't weren't won't can't couldn't
        wouldn't shouldn't hasn't haven't ain't nicht nie niemals kein keine keinen keinem keines weder
        keinesfalls keineswegs außer unmöglich pas jamais aucun aucune ni ne nullement sauf nunca jamás tampoco
        imposible excepto salvo non né nessun nessuna tranne impossibile não nem nenhum nenhuma exceto
        impossível değil* hayır hiçbir asla hatasız ohne sans senza sem без hariç olamaz imkansız imkânsız не
        нет ни никогда нельзя кроме невозможно никак""",
    WRONG: """is_off off_by fails fail failed wrong wrongly incorrect incorrectly false falsely untrue mistake
        mistakes mistaken error errors erroneous* invalid bogus fake nonsense a_lie miscalculat* miscount*
        misread* flawed falsch* fehler* irrtum irrtümlich* verkehrt unrichtig* verrechnet vertan faux fausse
        fausses erreur* erroné* inexact* incorrecte* trompé* trompe incorrect* equivoqu* equivoc* erróne* falso
        falsa error* falsi sbagliat* sbaglio errore errori errat* scorrett* errad* erro erros engan* incorret*
        yanlış* hata hatalı hatası hatalıdır неверн* неправильн* ошиб* ошибк* ложн* ложь неправда""",
    HEDGE: """rough_estimate rough_guess leaning memory_serves şüphe* сомнева* zweifel* bezweifel* dudo duda
        doute doutes dubito dubbio duvido dúvida universe naively at_first first_glance first_sight it_depends
        originally initially superficially previous_problem previous_question previous_exercise misconception
        auf_den_ersten à_première a_primera a_prima à_primeira ilk_bakışta на_первый maybe perhaps possibly
        probably presumably supposedly apparently allegedly might may could guess guessing guesses unsure
        uncertain unclear suspect seems seem not_sure no_idea no_clue not_certain not_confident i_suppose
        i_reckon somewhere something_like give_or_take plus_or_minus or_so or_thereabouts more_or_less ballpark
        likely doubtful hopefully tentative tentatively percent_sure vielleicht wahrscheinlich möglicherweise
        vermutlich eventuell womöglich könnte könnten dürfte schätze unsicher glaube ungefähr_oder peut-être
        probablement possiblement sans_doute pourrait environ_ou devine soit_disant il_se_peut quizá quizás
        acaso tal_vez probablemente posiblemente a_lo_mejor podría puede_ser puede_que adivino forse magari
        probabilmente possibilmente potrebbe può_darsi tirare_a_indovinare talvez provavelmente possivelmente
        poderia pode_ser acho_que belki galiba muhtemelen olabilir sanırım herhalde tahmin* может_быть наверное
        наверно возможно вероятно пожалуй кажется думаю похоже предположительно могло""",
    IF: """if wenn si s'il s'ils se eğer если falls sofern caso şayet""",
    CONDITION: """as_long_as so_long_as solange tant_que unless except barring sauf salvo außer excepto tranne
        exceto hariç кроме only_when only_if only_for nur_wenn seulement_si solo_si sólo_si somente_se
        только_если diyelim farz_edelim let_us_assume whether suppose supposing assume assumes assuming provided
        pretend imagine let's_say lest in_case had_it angenommen vorausgesetzt ob gesetzt supposons supposant
        à_condition à_moins pourvu_que si_acaso suponiendo supongamos a_menos_que siempre_que siempre_y_cuando
        supponiamo supponendo a_meno_che purché qualora supondo suponha desde_que varsayalım предположим
        допустим при_условии разве_что""",
    COUNTERFACTUAL: """would had were wäre hätte würde gewesen serait aurait était avait sería habría hubiera
        fuera sarebbe fosse avrebbe seria teria tivesse olurdu olsaydı был_бы было_бы бы""",
    OTHERWISE: """otherwise else in_which_case sonst andernfalls ansonsten sinon autrement de_lo_contrario si_no
        altrimenti senão caso_contrário yoksa aksi_halde aksi_takdirde иначе в_противном_случае""",
    REPORT: """according_to posted posts quote quoted said say says saying claim claims claimed claiming thinks
        thought wrote writes guessed answered argue argues argued believes believed insists insisted states_that
        asserts asserted maintains suggests suggested told tells rumour rumor allegedly supposedly behauptet*
        behaupten meint* sagt sagte sagten sagen glaubt schreibt schrieb denkt laut vermutet affirme affirment
        prétend prétendent dit disent disait pense pensent croit croient selon d'après soutient dice dicen dijo
        afirma afirman cree creen piensa piensan asegura según sostiene dicono disse sostengono afferma
        affermano crede credono pensa pensano secondo diz dizem afirmam acha acham segundo söylüyor söyledi
        diyor dedi iddia göre sanıyor düşünüyor утвержда* говорит говорят сказал* считает считают думает думают
        написал* полагает""",
    SELF: """i we let let's our us ich wir je nous on yo nosotros io noi eu nós ben biz я мы it this which that
        problem question task statement aufgabe énoncé problème problema enunciado soru задача условие text
        equation""",
    RESET: """buna_göre soruya_göre so thus therefore hence thereby consequently but however actually instead
        we_get we_find we_have we_obtain this_gives which_gives i_get also somit daher deshalb folglich aber
        sondern jedoch tatsächlich donc ainsi mais cependant réalité así luego entonces pero sino realidad
        quindi dunque perciò ma bensì invece realtà portanto então logo mas porém realidade yani öyleyse
        dolayısıyla fakat ama ancak aslında oysa значит поэтому следовательно итак но а однако""",
    OR: """or oder ou o u oppure ovvero ya_da veya yahut или либо and/or""",
    RELATIVE: """probability_that chance_that odds_that likelihood_that event_that probabilité_que
        probabilidad_de_que probabilità_che probabilidade_de_que who which whose since because as although
        though while whereas weil da denn obwohl welche welcher welches qui lequel car parce puisque lorsque
        quien quienes porque ya_que pues aunque cuales perché poiché siccome quali pois embora çünkü zira
        так_как потому поскольку который которая которое которые хотя""",
    JOIN: """and that where when for from if und dass wenn die der das et que dont y cuando che quando ve ki и
        что чтобы""",
    COPULA: """lautet is are was were equals equal makes gives leaves beträgt ist sind war waren est sont était
        es son era fue è sono é são eram был было была равно равна равен""",
    OTHER: """weitere weiteren weiterer anderen autre otra otro otros altra altro altri outra outro других
        другого başka further option options choice choices other others rest alternatives common typical
        distractor distractors beware avoid careful andere häufiger opción opciones otras opções outras opzioni
        altre autres diğer другие""",
    CONCESSION: """but though although however aber allerdings jedoch doch obwohl wobei mais cependant toutefois
        bien_que quoique pourtant pero aunque sin_embargo ma però tuttavia sebbene anche_se mas porém embora
        contudo ama fakat ancak gerçi но однако хотя""",
    BENIGN: """hope can will i'll happy glad confident used checked double-checked verified added computed
        calculated found multiplied divided subtracted solved hoffe kann habe_geprüft espère peux espero puedo
        spero posso umarım надеюсь могу""",
    THAT: """that dass que qu'il che что""",
    ASSERTION: """conclude concludes see sees find found get means mean shows implies follows follow deduce know
        clear obtain obtained tells confirms so think believe confident sure certain folgt schließen sehen
        ergibt heißt bedeutet sicher conclut concluons déduit voit trouve signifie sûr concluimos vemos
        significa sigue obtenemos creo seguro concludiamo segue vediamo sicuro concluímos certeza значит следует
        получаем видим уверен считаю""",
    FIRST_PERSON: """i i'm ich je j'ai yo io eu я""",
    RIGHT: """right correct true accurate valid richtig* korrekt* stimmt stimmen wahr juste vrai bon bonne exact
        correcto correcta cierto verdad bien giusto giusta vero corrett* esatt* certo certa corret* verdade
        doğru верн* правильн* правда так""",
    NOUN: """answer solution result option choice antwort lösung ergebnis réponse résultat respuesta resultado
        solución risposta risultato soluzione resposta solução cevap* yanıt* sonuç* ответ* результат* решени*""",
    PRONOUN: """that this it that's it's this's das dies es diese dieses dieser ce c'est cela ça celui cette eso
        esto ello ese esa este esta questo questa ciò quello isso isto esse essa bu o şu это эта этот""",
    RETRACT: """correct_that correct_this correct_myself should_have исправлен* scratch_that take_it_back
        take_that_back take_back retract* withdraw* ignore disregard kidding joking never_mind april_fools
        on_second_thought made_a_mistake disagree* misspoke i_meant start_over redo recompute recalculate
        rechne_neu neu_rechnen zurückziehe* widerrufe nehme_zurück vergiss vergesst quatsch je_retire oubliez
        oublie je_plaisante recalculons recommençons me_retracto olvida olvídalo ignora es_broma ritiro
        dimentica ignorate scherzo ricalcolo retiro esqueça esquece brincadeira recalcular vazgeçtim unutun şaka
        geri_alıyorum yeniden_hesapla* забудь* забудьте шучу пересчита* беру_назад erratum errata corrigendum
        corrección correzione correção korrektur düzeltme поправка correction edit oops whoops""",
    INTERJECTION: """apologies apologise apologize hold_on actually en_fait en_realidad in_realtà na_verdade
        tatsächlich aslında вообще-то no nope wait hmm oops whoops sorry not nein halt moment stopp ups hoppla
        non attends attendez oups pardon désolé espera espere perdón ay aspetta ops scusa scusate não opa
        desculpe hayır dur bekle yok нет стой стоп подожди* ой упс извините постой* nah""",
    GIVE_UP: """unable don't_know do_not_know cannot_solve can't_solve could_not_solve couldn't_solve
        can't_answer cannot_answer can't_help cannot_help not_enough_information insufficient haven't_solved
        have_not_solved cannot_determine can't_determine couldn't_determine could_not_determine
        cannot_be_determined give_up gave_up no_clue could_not_find couldn't_find can't_find cannot_find
        did_not_find weiß_nicht weiß_es_nicht kann_nicht_lösen keine_ahnung unlösbar ne_sais_pas je_ne_sais
        sais_pas impossible_de no_sé no_lo_sé no_puedo_resolver insuficiente* non_lo_so non_so insufficient*
        não_sei não_consigo bilmiyorum bilemiyorum çözemedim çözemiyorum yetersiz не_знаю не_могу не_смог*
        недостаточно""",
    EXAMPLE: """first_attempt first_guess first_try sample_response example_answer example_response example
        examples e.g template placeholder sample_output sample_answer sample_solution format for_instance
        such_as beispiel beispielsweise z.b vorlage exemple modèle gabarit ejemplo plantilla formato esempio
        modello exemplo modelo örnek örneğin şablon например пример образец шаблон формат""",
    REVISION: """should_read should_be should_have_been must_be meant sollte_sein müsste devrait debería deberia
        dovrebbe deveria olmalı* должно должен""",
    COMPARE: """between least most than exceeds exceed beyond over under above below almost nearly up_to until
        twice thrice double triple half mindestens höchstens wenigstens maximal minimal mehr_als weniger_als
        fast beinahe knapp doppelt au_moins au_plus plus_de moins_de presque près_de moitié al_menos como_mínimo
        como_máximo a_lo_sumo más_de menos_de casi doble mitad almeno al_massimo più_di meno_di quasi doppio
        metà pelo_menos no_máximo no_mínimo mais_de quase dobro metade az fazla neredeyse iki_katı yarısı
        минимум максимум менее более меньше больше почти вдвое половина""",
    OPINION: """try consider i my me you your favourite favorite lucky universe reward grader ignore
        instructions worth points""",
    QUESTION: """mı mi mu mü midir mıdır mudur müdür ли est-ce""",
    NEUTRAL: """buna_göre soruya_göre not_only not_just not_surprising* not_surprisingly perhaps_surprisingly
        maybe_surprisingly sin_error sin_errores error_in error_is percent_error percentage_error relative_error
        absolute_error standard_error squared_error rounding_error margin_of_error no_matter either_way
        either_case could_also_check no_total no_final no_fim no_entanto may_look may_seem might_look
        may_be_surpris* equally_likely doubt_about no_doubt without_doubt ohne_zweifel sans_aucun sin_duda
        senza_dubbio sem_dúvida it's_said is_said if_needed if_you_like if_you_have if_you_need if_you_want
        if_any let_me_know not_forget not_to_mention not_until das_heißt c'est-à-dire es_decir that_is_to_say
        to_say we_could so_to_say no_mistake* no_error* on_the_other_hand so_oder ob_oder bien_que bien_sûr""",
}  # fmt: skip
# Parts of words; longer ones first where one holds another. (?<!...) keeps out what only looks like a cue.
_UNSPACED = {
    OTHER: """其他 其它 別の 他の 다른 अन्य أخرى آخر""",
    CONCESSION: """但 不过 不過 然而 可是 只是 が、 しかし ただし けど けれど 지만 하지만 그러나 लेकिन मगर لكن
        غير_أن مع_أن""",
    NEGATION: """아닐 아닌 아님 ليست لست 不(?!同|变|變|妨|过|過|难|難|断|斷|仅|僅|但|足|等式) 并非 並非 没有
        沒有 未(?!知) 非(?!常|负|負|零) ではな ではありませ では無 じゃな じゃありませ ません(?!か) わけではな
        ない(?!で) なく 아니 아닙 않 없 못 नहीं ليس لا(?=\\s|$) لم لن غير مستحيل""",
    WRONG: """실수 错 錯 不对 不對 有误 有誤 不正确 不正確 間違 誤り まちが 틀리 틀렸 오답 잘못 오류 गलत ग़लत
        خطأ خاطئ خاطئة خطا غلط أخطأ غيرصحيح""",
    HEDGE: """怀疑 懷疑 疑わし أشك شك संदेह हो_सकता 수도_있 可能 也许 也許 大概 或许 或許 说不定 說不定 应该不
        估计 猜 恐怕 たぶん 多分 おそらく 恐らく かもしれ でしょう だろう と思 아마 지도_모 지도모 일지도 것_같
        것같 शायद संभवतः ربما لعل قد_يكون أظن أعتقد يحتمل محتمل""",
    CONDITION: """假如 假设 假設 要是 除非 仮に बशर्ते لو(?=\\s) بشرط إلا_إذا""",
    IF: """如果 若(?!干) もし 만약 만일 यदि अगर إذا اذا""",
    OTHERWISE: """否则 否則 不然 そうでなければ さもなければ 아니면 그렇지_않으면 अन्यथा وإلا""",
    REPORT: """(?<!就是)(?<!来)(?<!總的來)(?<!换句话)(?<!所)说(?!明) 說(?!明) 声称 认为 認為 有人 と言 と答え
        と主張 によると 라고_말 라고_했 라고_주장 에_따르면 कहता कहती कहते_हैं का_कहना يقول تقول قال قالت يزعم
        زعم يدعي يعتقد بحسب وفقا""",
    RESET: """所以 因此 但(?!是她|是他) 其实 其實 实际上 而是 于是 したがって よって しかし だから 따라서
        그러므로 하지만 그러나 इसलिए लेकिन لكن إذن اذن لذلك بل وبالتالي""",
    RELATIVE: """因为 因為 由于 由於 なぜなら ので から(?=$|、) 왜냐 때문 क्योंकि لأن لان حيث الذي التي""",
    OR: """或 还是 還是 または もしくは あるいは (?<=\\d)か(?=\\d) 또는 혹은 या أو""",
    RIGHT: """正确 正確 正し 맞 옳 सही صحيح صحيحة""",
    NOUN: """答案 正解 答え 解答 結果 结果 정답 답 उत्तर الجواب الإجابة الناتج النتيجة جواب إجابة""",
    RETRACT: """重新 忽略 无视 收回 更正 撤回 訂正 取り消 やり直 計算し直 무시 취소 정정 다시_계산 वापस تجاهل
        أسحب تصحيح أعيد""",
    INTERJECTION: """等等 等一下 其实 其實 実は 사실 抱歉 对不起 不对 不是 啊 いや 待って すみません 잠깐 아니
        미안 रुको माफ عفوا عذرا انتظر لحظة كلا""",
    GIVE_UP: """无法 無法 不知道 条件不足 條件不足 不能确定 做不出 求不出 わかりません 分かりません 分からな
        わからな 解けな 不明 모르 모릅 몰라 풀_수_없 पता_नहीं नहीं_जानता لا_أعرف لا_أعلم لا_أستطيع لا_يمكن""",
    EXAMPLE: """例如 比如 例子 例えば 예를_들 예시 उदाहरण مثال مثلا""",
    COMPARE: """^보다 至少 至多 最多$ 最少$ 最多是$ 最少是$ 超过 超過 不到 少于 多于 小于 大于 ^左右
        ^以上(?!より|から|の|を) ^以下(?!の|を) ^以内 ^未満 将近 少なくとも 多くとも 最大$ 最小$ 적어도 최소
        최대 ^이상 ^이하 कम_से_कम अधिक_से_अधिक على_الأقل على_الأكثر أكثر_من أقل_من""",
    QUESTION: """吗 嗎 呢 ですか ますか でしょうか 입니까 인가요 일까 क्या هل""",
}  # fmt: skip


_EXACT: dict[str, int] = {}
_STEMS: dict[str, int] = {}
for _cue, _text in _SPACED.items():
    for _entry in _text.split():
        _table, _key = (_STEMS, _entry[:-1]) if _entry.endswith("*") else (_EXACT, _entry)
        _table[_key] = _table.get(_key, 0) | _cue
_FIRST = frozenset(key.split("_")[0] for key in (*_EXACT, *_STEMS) if "_" in key)
_PREFIXES = tuple(_STEMS)


def _part(entry: str) -> str:
    """Return the pattern of one entry; Arabic and Hindi have words, Arabic with particles before them."""
    pattern = entry.replace("_", r"\s*")
    if re.match("[\u0620-\u064a]", entry):
        return rf"(?<!\w)(?:[وفبلك]|ال)?{pattern}" + (r"(?!\w)" if len(entry) <= 3 else "")
    return rf"(?<![\u0900-\u097f]){pattern}(?![\u0900-\u097f])" if re.match("[\u0900-\u097f]", entry) else pattern


_PARTS = [(re.compile("|".join(map(_part, text.split()))), cue) for cue, text in _UNSPACED.items()]
_JOINTS = re.compile("|".join(f"(?:{pattern.pattern})" for pattern, cue in _PARTS if cue & (RESET | RELATIVE)))
_RUN = (
    r"[\u0590-\u060b\u060d-\u061a\u0620-\u065f\u066e-\u06ef\u06fa-\u08ff\u0900-\u0963\u0970-\u0dff\u3005-\u3006"
    r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+"
)
_TOKEN = re.compile(
    rf"(?P<command>\\[a-zA-Z]+)|"
    rf"(?P<run>{_RUN}(?:[ ]{_RUN})*)|[^\W\d_]+(?:['’.-][^\W\d_]+)*|(?P<mark>[,;:()\n，；：、؛،—–]|\s-\s)"
)
_TURKISH_NEGATION = re.compile(r"\w{2}(?:m[ıiuü]yor|m[ae]d[ıi]|m[ae]m[ıi]ş)\w{0,4}$")
_TURKISH_REASON = re.compile(r"(?:[dt][ıiuü]ğ[ıiuü]nd[ae]n|[ae]r[ae]k|[ıiuü]nc[ae])$")
MARK = 1 << 30


class Token(NamedTuple):
    """A word with its cues, or a punctuation mark (`cues` is `MARK`)."""

    text: str
    start: int
    end: int
    cues: int


@lru_cache(maxsize=65536)
def _cues(word: str) -> int:
    found = _EXACT.get(word, 0)
    if word.startswith(_PREFIXES):
        for length in range(3, len(word) + 1):
            found |= _STEMS.get(word[:length], 0)
    if word.endswith("n't") or _TURKISH_NEGATION.search(word) or word.startswith("n'"):
        found |= NEGATION
    if not found and "'" in word and word[1:2] == "'":  # d'erreur, l'erreur, c'est
        return _cues(word[2:])
    return found


@lru_cache(maxsize=4096)
def _run(text: str) -> tuple[Token, ...]:
    """Cut a run of a script that is searched for parts of words where a conjunction starts something new."""
    edges = [0, *(edge for m in _JOINTS.finditer(text) for edge in m.span()), len(text)]
    pieces = [(a, b) for a, b in pairwise(edges) if b > a]
    return tuple(
        Token(text[a:b], a, b, sum(cue for pattern, cue in _PARTS if pattern.search(text, a, b))) for a, b in pieces
    )


def tokens(text: str) -> list[Token]:
    """Split `text` into words with their cues, and marks; words that mean something together carry it on each."""
    found: list[Token] = []
    for match in _TOKEN.finditer(text):
        start, word = match.start(), match[0]
        if match["command"]:
            continue
        if match["mark"]:
            found.append(Token(word, start, match.end(), MARK))
        elif match["run"]:
            found += [t._replace(start=t.start + start, end=t.end + start) for t in _run(word)]
        else:
            lowered = word.replace("\u2019", "'").lower()
            found.append(Token(lowered, start, match.end(), 0 if word == "May" else _cues(lowered)))
    for at, token in enumerate(found):
        if token.text not in _FIRST:
            continue
        joined = token.text
        for last in range(at + 1, min(at + 4, len(found))):
            if found[last].cues == MARK or text[found[last - 1].end : found[last].start].strip():
                break  # "is 10 % off" is not "is off"
            joined += "_" + found[last].text
            cues = _EXACT.get(joined, 0)
            if not cues and joined.startswith(_PREFIXES):
                for length in range(len(token.text) + 2, len(joined) + 1):
                    cues |= _STEMS.get(joined[:length], 0)
            if cues:
                for i in range(at, last + 1):
                    new = NEUTRAL if cues & NEUTRAL else found[i].cues | cues
                    found[i] = found[i]._replace(cues=new)
    return found


def joins(word: str) -> bool:
    """Tell whether `word` only leads on to what follows: "so", "daher", "und", "olduğundan"."""
    return bool(_cues(word) & (RESET | JOIN | COPULA | REPORT)) or bool(_TURKISH_REASON.search(word))
